"""`lamina play`: a local page on which latent actions are driven, transferred, added up, mapped and checked."""
