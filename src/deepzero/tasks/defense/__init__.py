"""A denoiser in front of a classifier that can only be queried, so that the pair is certifiably robust."""
