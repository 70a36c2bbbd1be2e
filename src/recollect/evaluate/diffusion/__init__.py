"""How near recipes stay to the uncached pictures of a diffusion model, and for how much work."""
