"""What attention tells of a denoiser: which blocks look at what moves, and which at the text."""
