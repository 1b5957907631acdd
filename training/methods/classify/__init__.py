"""Classification of actions."""
