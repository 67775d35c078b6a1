"""Detection adapter: classifier weights to Detectron2 backbones, detector training and evaluation."""
