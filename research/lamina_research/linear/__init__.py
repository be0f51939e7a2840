"""The linear LAM of *Why Latent Actions Fail*: its objectives, trained and solved in closed form, and what its latents hold."""
