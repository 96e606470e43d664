"""Modelling files that travel with free-layout exports; each imports nothing but torch and transformers."""
