"""Use of a trained LAM: encoding of episodes, labelling of datasets, and the interface of an evaluated model."""
