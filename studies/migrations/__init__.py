"""How the study store's tables came to be: one revision per release that changed them."""
