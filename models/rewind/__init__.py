"""ReWiND: progress of a clip towards an instruction, read by a small causal transformer from frozen encoders."""
