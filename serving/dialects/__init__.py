"""Wire dialects: one file each; adding one never edits another."""
