"""Recommenders to hold R2Rec against: learned and closed-form ones, under the same protocol."""
