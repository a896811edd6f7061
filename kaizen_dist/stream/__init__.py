"""What is learnt, on disk: from a source of labelled images to tasks of shards, and back.

prepare.py    source -> plan -> shards -> manifest;  verify.py checks the outcome
sources.py, torchvision_source.py, trees.py, images.py      where images come from
scenario.py   which image belongs to which task, and which keeps its label
shards.py, walk.py, manifest.py                             the files of a stream
order.py      which samples a step takes;  replay.py what is kept of finished tasks
workfolder.py, pool.py, progress.py, files.py               the means of long, safe work
"""
