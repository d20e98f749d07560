"""The policy: a vision-language-action model behind SB3's actor-critic interface."""
