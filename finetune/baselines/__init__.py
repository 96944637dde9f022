"""Methods to compare with, each in one file, in the same harness."""
