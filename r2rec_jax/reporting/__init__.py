"""What a person looks at after a run: curves, tables, comparisons of runs and the evidence pages."""
