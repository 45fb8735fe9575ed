"""Knowledge seeding: distil what a model knows in context into a new expert (paper.md section 3)."""
