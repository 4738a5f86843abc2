"""What became of the packets that were sent to a decoder."""

from collections import deque

from av.packet import Packet

# More packets than any decoder holds back: one per thread plus those of reordered frames.
_MAX_DECODER_DELAY = 64


class History:
    """What became of the packets that were sent to a decoder, by their numbers.

    sent, failed: the last packets, and those of them at which the decoder reported an error, which
        may be due to an earlier packet. Packets that an edit list discards, and those of unwanted
        frames, are left out.
    keyframes: the keyframes among the last packets, and two before them.
    early: number and pts of the packets sent before the first frame came out.
    decoded: the packets of the last frames.
    """

    def __init__(self) -> None:
        self.sent, self.failed, self.keyframes = deque[int](), deque[int](), deque[int]()
        self.early: list[tuple[int, int | None]] = []
        self.decoded = deque[int](maxlen=2 * _MAX_DECODER_DELAY)

    def add(self, number: int, packet: Packet, failed: bool, wanted: bool) -> None:
        """Record that a packet was sent, and whether its frame is wanted."""
        if wanted and not packet.is_discard:
            self.sent.append(number)
            if not self.decoded:
                self.early.append((number, packet.pts))
        if wanted and failed:
            self.failed.append(number)
        if packet.is_keyframe or not self.keyframes:
            self.keyframes.append(number)
        oldest = number - _MAX_DECODER_DELAY
        for numbers, spare in (self.sent, 0), (self.failed, 0), (self.keyframes, 2):
            while len(numbers) > spare and numbers[spare] < oldest:
                numbers.popleft()

    @property
    def missing(self) -> set[int]:
        """The last packets without a frame."""
        return set(self.sent) - set(self.decoded)
