"""Training ReWiND: the embedded model, on features of frozen encoders."""
