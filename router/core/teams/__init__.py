"""Who asks: teams, their keys, rights, limits and fair share of the cards. Pure."""
