"""Keys and values of tokens that do not change, kept across denoising steps."""
