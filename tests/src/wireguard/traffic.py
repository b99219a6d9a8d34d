"""Sends data through a tunnel and back, and looks at every byte of it.

serve             answers on TCP and UDP port 7000 until it is killed; says "up" when it does
ask ADDRESS       exchanges streams, datagrams of all sizes and bursts of datagrams with a server
ask-stream ADDRESS BYTES TEXT   only a stream; with a TEXT, it is this text again and again
"""

import random
import socket
import struct
import sys
import threading

PORT = 7000
STREAM = 3_000_000
# What one socket may have under way; below the least queue on the way.
WINDOW = 32
# Largest payload of which all sizes up to it are tried: what goes in one packet of 1,420 bytes over IPv4.
LARGEST = 1392
# Most that one burst may hold.
BURST = 60_000
SO_RCVBUFFORCE = 33
SOL_UDP = 17
UDP_SEGMENT = 103
IP_MTU = 14
IPV6_MTU = 24
PATIENCE = 10


def noise(seed, size):
    return random.Random(seed).randbytes(size)


def difference(got, wanted):
    if got == wanted:
        return "none"
    at = next((i for i, (g, w) in enumerate(zip(got, wanted)) if g != w), min(len(got), len(wanted)))
    return f"{len(got)} bytes instead of {len(wanted)}, different from byte {at}"


def read_exactly(stream, size):
    got = bytearray()
    while len(got) < size:
        part = stream.recv(min(1 << 16, size - len(got)))
        if not part:
            break
        got += part
    return bytes(got)


def exchange(stream, send, receive):
    """Both ways at once."""
    sender = threading.Thread(target=stream.sendall, args=(send,))
    sender.start()
    got = read_exactly(stream, len(receive))
    sender.join()
    return difference(got, receive)


def contents(size, text):
    if text:
        data = (text.encode() * (size // len(text) + 1))[:size]
        return data, data
    return noise("there", size), noise("back", size)


def udp_socket(family):
    udp = socket.socket(family, socket.SOCK_DGRAM)
    udp.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
    udp.settimeout(PATIENCE)
    return udp


def serve_stream(stream):
    size, length = struct.unpack("!QH", read_head(stream, 10))
    there, back = contents(size, read_head(stream, length).decode())
    # The verdict follows the data, as only the client's end is looked at.
    stream.sendall(exchange(stream, back, there).encode())
    stream.close()


def read_head(stream, size):
    return stream.recv(size, socket.MSG_WAITALL) if size else b""


def serve():
    udp = udp_socket(socket.AF_INET6)
    udp.settimeout(None)
    udp.bind(("::", PORT))
    tcp = socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True)

    def echo():
        while True:
            data, sender = udp.recvfrom(1 << 16)
            udp.sendto(data, sender)

    threading.Thread(target=echo, daemon=True).start()
    print("up", flush=True)
    while True:
        stream, _ = tcp.accept()
        threading.Thread(target=serve_stream, args=(stream,), daemon=True).start()


def ask_stream(address, size, text=""):
    stream = socket.create_connection((address, PORT), PATIENCE)
    stream.settimeout(PATIENCE)
    stream.sendall(struct.pack("!QH", size, len(text)) + text.encode())
    there, back = contents(size, text)
    came = exchange(stream, there, back)
    went = stream.makefile().read()
    if came != "none" or went != "none":
        sys.exit(f"a stream of {size} bytes: difference there: {went}; back: {came}")


def collect(udp, wanted, what):
    """Datagrams may come in any order, but all must come, whole and once."""
    got = []
    try:
        while len(got) < len(wanted):
            got.append(udp.recv(1 << 16))
    except TimeoutError:
        pass
    if sorted(got) != sorted(wanted):
        missing = sorted(len(w) for w in set(wanted) - set(got))
        strange = sorted(len(g) for g in set(got) - set(wanted))
        sys.exit(f"{what}: {len(got)} of {len(wanted)} came; sizes missing {missing}, sizes not sent {strange}")


def ask_datagrams(udp, whole):
    # The last ones go in fragments.
    sizes = [*range(LARGEST + 1), whole - 1, whole, whole + 1, 3 * whole, 30_000]
    for at in range(0, len(sizes), WINDOW):
        wanted = [noise(size, size) for size in sizes[at : at + WINDOW]]
        for data in wanted:
            udp.send(data)
        collect(udp, wanted, f"datagrams from {sizes[at]} bytes on")


def ask_bursts(sockets, whole):
    """Bursts of several flows: equal segments with and without a short one at the end, sent one after the other and then received."""
    most = min(45, BURST // whole)
    for segment, size in [
        (1000, 40_000),
        (whole, most * whole),
        (whole, most // 2 * whole + 1),
        (100, 6_400),
        (512, 10_247),
        (1, 50),
    ]:
        flows = [(udp, noise(f"{segment}-{at}", size)) for at, udp in enumerate(sockets)]
        for udp, data in flows:
            udp.sendmsg([data], [(SOL_UDP, UDP_SEGMENT, struct.pack("H", segment))])
        for udp, data in flows:
            wanted = [data[at : at + segment] for at in range(0, size, segment)]
            collect(udp, wanted, f"a burst of {size} bytes in datagrams of {segment}")


def ask(address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sockets = [udp_socket(family), udp_socket(family)]
    for udp in sockets:
        udp.connect((address, PORT))
    if family == socket.AF_INET6:
        whole = sockets[0].getsockopt(socket.IPPROTO_IPV6, IPV6_MTU) - 48
    else:
        whole = sockets[0].getsockopt(socket.IPPROTO_IP, IP_MTU) - 28
    ask_datagrams(sockets[0], whole)
    ask_bursts(sockets, whole)
    ask_stream(address, STREAM)


match sys.argv[1:]:
    case ["serve"]:
        serve()
    case ["ask", address]:
        ask(address)
    case ["ask-stream", address, size, *text]:
        ask_stream(address, int(size), *text)
    case other:
        sys.exit(f"unknown: {other}")
