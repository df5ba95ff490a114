"""Recipes and what they share. May import core; never nodes, never ComfyUI."""
