"""The Storage SCP: a process of its own between the network and the spool folder.

::

    server        accepts connections, reads the association request, says who may come in
    association   pynetdicom's association, with the streaming loop in place of its reactor
    stream        C-STORE and C-ECHO straight from the socket
    intake        one object: spool file, element walk, checks, status
    committer     rows of what is durable, in batches, behind the answers
    process       the whole of it as a child process that the node starts and watches

pynetdicom negotiates, releases and aborts, and serves whatever is not C-STORE or C-ECHO.
"""
