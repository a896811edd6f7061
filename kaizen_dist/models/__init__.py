"""Models of finished tasks, for use without the training.

    evaluate     RUN and a stream -> accuracy, confusion, calibration, drift (with visualise)
    export       RUN -> a folder of plain files: weights, model.json (description), README.md
                 (card), on demand model.onnx (onnx)
    network      such a folder -> a module;  predict: images -> class names and probabilities

`predict` and what it imports (`description`, `network`, views.eval_view, learner.backbone) import
nothing of the training: they are all that a machine that only predicts has to load.
"""
