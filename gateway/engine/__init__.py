"""What runs under the doors: python-socketio and python-engineio, and all that touches their internals.

What is relied on in the libraries, beyond what they document. This is the whole list; `tests/test_reliance.py` has a
test for each line, by the same name, so that an upgrade that moves something fails there and says what.

python-socketio
    engine class: `AsyncServer` makes the Engine.IO server that ``_engineio_server_class`` names.
    engine handlers: ``_handle_eio_connect``, ``_handle_eio_message`` and ``_handle_eio_disconnect`` are registered as
    its handlers ``connect``, ``message`` and ``disconnect``, with these arguments; the first initializes the client
    manager once, noting it in ``manager_initialized``, keeps the environ in ``environ``, and does nothing else.
    packet handlers: a message comes to ``_handle_connect``, ``_handle_event`` and ``_handle_disconnect`` by its type,
    and an event is handled by nothing else.
    sending: all goes by ``_send_packet`` and ``_send_eio_packet``, and a binary packet is shared between recipients.
    attachments: those awaited are in ``_binary_packet``, by connection, with ``attachment_count``.
    client manager: ``connect`` registers who has joined, ``basic_enter_room``, ``basic_leave_room`` and
    ``basic_disconnect`` keep the rooms, ``pending_connect``, ``pending_disconnect`` and ``callbacks`` the rest.
    acknowledgements: ``_generate_ack_id`` keeps a callback in ``callbacks``, by client and a number that counts from 1,
    and one that comes calls it with what it brings.
    other nodes: `AsyncPubSubManager` publishes by ``_publish``, hears by ``_listen`` and works in ``_thread``.

python-engineio
    handshake: a session is made by ``_handle_connect``, after the transport, the version and the origin were looked at,
    and only there; what it returns, where it is no dictionary, is the response.
    cors: ``_cors_headers`` makes a response's headers of a request's environ.
    session: ``AsyncSocket(server, sid)`` is in ``sockets`` before the handler ``connect`` is called; its ``__class__``
    can be assigned, and what waits for it is in ``queue``.
    session state: ``connected``, ``upgrading``, ``upgraded``, ``closing``, ``closed``, ``last_ping``, and nothing else
    that ``__init__`` makes but ``server``, ``sid``, ``queue`` and ``session``.
    session life: ``receive``, ``send``, ``close(wait, abort, reason)``, ``schedule_ping``, ``check_ping_timeout``,
    ``handle_get_request``, ``handle_post_request`` and ``_websocket_handler`` are called on it.
    driver: ``_async["websocket"]`` serves a WebSocket, by ``handler`` and ``server``.
    payload: ``Payload.max_decode_packets`` bounds a polling request.

aiohttp
    handler: `RequestHandler` keeps ``transport``, ``_message_tail`` and ``_buffer_paused``, and lets go of a connection
    at ``connection_lost(None)``.
    response: a handler's response is asked to ``prepare`` and ``write_eof`` itself.
    request: it keeps ``_protocol`` and ``_payload_writer``, and needs neither once it is answered, nor the headers that
    its ``_message`` has a second time, as ``raw_headers``.
    message: a `Request` can be made of a `RawRequestMessage`, by what it asks its connection for: ``transport``,
    ``ssl_context``, ``peername`` and ``sockname``.
    protocol: a site listens with what its runner's ``server`` is, and a server's handler takes a connection that has
    been another protocol's, with what has come; ``shutdown`` of a runner is called when it has ceased to listen.
    listening: a site keeps what it listens with in ``_server``.

uvloop
    transport: ``set_protocol`` keeps, beside a protocol that takes buffers, the last before it that does not.

picows
    protocol: `WSProtocol` is made with these arguments, told of a connection, and fed by ``get_buffer`` and
    ``buffer_updated`` like any buffered protocol.
    listener: it calls ``on_ws_connected``, ``on_ws_frame``, ``on_ws_disconnected`` and ``pause_writing``; the second is
    looked for on the object before its class.
    answer: what the listener's factory gives along with it is asked for ``status``, given the key's answer among its
    ``headers`` and written by ``to_bytes``, all at once.
    wire: ``send_close`` and ``disconnect`` go to the transport that the protocol was given, which need not be the
    loop's own; of its socket only the number is used, and options that change nothing of what is written. It keeps the
    head as ``request``, and needs its ``headers`` no more.
"""
