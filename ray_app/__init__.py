"""proxyqueue on the driver's side: from annotations to images, an index and answers. Imports run to lower layers only.

7  cli, demo                                               the commands
6  submission                                              a run as a job of a cluster; what a cluster lacks
5  maintenance, export, evaluation, query, gallery         what is done with an output
4  generation, features                                    what is requested, minus what exists, through the queue
3  work_queue, index, annotations                          batches through actors; rows; query files
2  output, cluster                                         files; Ray
1  errors, files, flags, arguments, …                      what all of them use

`jobs` (layer 8) are entry points above them, `actors` (layer 0) is what runs on a GPU worker and imports none of them.
"""

__version__ = "0.2.0.dev0"
