"""What a person looks at after a run: plots of the training curves."""
