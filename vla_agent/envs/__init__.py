"""The one door to libero_gym: environments as SB3's vectors of tokens and bins."""
