"""Other projects' checkpoints as encoders of ours, one file a project; `weights` reads them.

The tables are plain text, so that listing names imports no network.
"""

from __future__ import annotations

PROJECTS = {
    "s3prl": "auricle.encoders.foreign.s3prl",
    "cpc": "auricle.encoders.foreign.cpc_audio",
    "audiomae": "auricle.encoders.foreign.audiomae",
    "mae-ast": "auricle.encoders.foreign.mae_ast",
    "fairseq": "auricle.encoders.foreign.fairseq",
}
"""Form of name → its module: `KEEP`, the file's entries that matter, and `convert(entries, place)`."""
