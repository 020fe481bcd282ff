"""The MRD listener: a process of its own that takes raw k-space from scanners and answers with images.

::

    server      accepts connections from the allow-list, one thread a session
    session     the state machine: config, header, readouts, CLOSE; images back
    journal     what comes, message by message, and the MRD file made of it
    workers     the processes that reconstruct while lines arrive, one kept warm
    answers     planes as MRD images
    plain       the reconstruction of last resort
    process     the whole of it as a child process that the node starts and watches
    filer       in the node: finished files get patient and study and are filed in the spool, or are held
    watch       in the node: folders that MRD files are put into

Nothing that comes over the wire names a module, a class or a file.
"""
