"""The joint flow policy: latent actions and actions generated together by flow matching (ALAM §3.3; villa-X's form for AC-LAM)."""
