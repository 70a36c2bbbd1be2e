"""What runs a policy on a denoiser: hooks put on, calls told apart, work left out or forecast."""
