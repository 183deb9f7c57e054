"""Weights as integers: what a user may ask for, what a checkpoint may hold, and how it is read and written."""
