"""Features, batched and differentiable, computed on the device: `frontend` joins the others into one configuration."""
