"""Gymnasium environments over the LIBERO manipulation benchmark."""
