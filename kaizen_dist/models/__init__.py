"""What leaves the house: the model of a finished task, for those who never saw the training.

    models       RUN/models/task-00.safetensors, written as each task ends
    export       RUN -> a folder of plain files: weights, model.json (description), README.md (card,
                 with the code of snippet), on demand model.onnx (onnx)
    network      such a folder -> a module;  predict: images -> class names and probabilities

`predict` and what it stands on (`description`, `network`, views.plain, the backbone) import
nothing of the training: they are what a machine that only answers has to load.
"""
