"""One file per family of pre-trained models; each only declares what is elastic in it."""
