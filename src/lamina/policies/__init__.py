"""From latent actions to decisions: the token model that predicts them, and the policy that acts on them."""
