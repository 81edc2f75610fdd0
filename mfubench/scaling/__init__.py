"""What compute buys: how well a model predicts, in normalised entropy, against simple predictors and other sizes."""
