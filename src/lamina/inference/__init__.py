"""What is done with a trained LAM without training it: encode episodes, label datasets, stand as a subject of evaluation."""
