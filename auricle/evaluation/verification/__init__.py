"""Speaker verification: do two recordings hold the same voice? Of one talker each, or where another talks, too."""
