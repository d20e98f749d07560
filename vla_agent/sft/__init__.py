"""Supervised fine-tuning: what demonstrations become, and the trainer."""
