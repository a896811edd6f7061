"""Streams on disk: prepared from sources of images, and read back.

prepare.py, add_tasks.py, shard_jobs.py, linked_tars.py, work_folder.py, pool.py
                                 source -> plan -> shards -> manifest
add_labels.py                    labels for images that are there
verify.py                        checks a prepared stream
sources/                         the kinds of sources, one file each
class_folders.py, file_tree.py, tar_members.py, folders.py, images.py   images in folders and tars
table_file.py, image_columns.py, patterns.py            images in tables, and in many files
listing.py, name_list.py         what is told of a source; millions of names in memory
scenario.py                      which image belongs to which task
hold_out.py                      which images are validated, and which keep their label
manifest.py, manifest_schema.py, manifest_entries.py, shards.py, index.py, names.py, late_labels.py
                                 the files of a stream
reader.py, remote.py, cache.py, prefetch.py             reading them, from a disk or a URL
order.py, replay_order.py        which samples a step takes, which of them it replays
replay.py                        the samples kept of finished tasks
"""
