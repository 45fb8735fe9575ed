"""Dreaming: the model tries its own texts on isolated copies and learns from what helped (paper.md section 4)."""
