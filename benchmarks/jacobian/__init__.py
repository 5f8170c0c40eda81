"""The Jacobian methods side by side on three trained models, by the properties that their papers claim."""
