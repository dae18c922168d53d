"""Images from non-Cartesian scans, whole frames at a time."""

from __future__ import annotations

from collections.abc import Iterator

from gadgets.base import Stream, parameter
from gadgets.frames import Frame, Readout, RepetitionFrames, Series
from gadgets.items import Acquisition, AcquisitionBucket, Image, Item
from gadgets.layout import Flag
from gadgets.reconstruction import NonCartesianGadget, Reconstruction


class NonCartesianRecon(NonCartesianGadget):
    """Images from radial, spiral or other non-Cartesian readouts, one a slice, contrast, phase, set and repetition.

    Acquisition or AcquisitionBucket -> Image. Readouts of all averages and segments go into one image. An image of single acquisitions
    is due with the LAST_IN_SLICE, LAST_IN_REPETITION or LAST_IN_MEASUREMENT flag. Sensitivity maps come from the slice's calibration
    readouts, else from its own data, and are reused for its later contrasts and repetitions.
    """

    each_contrast: bool = parameter(
        False,
        help="an image is due with the last readout of its own contrast (LAST_IN_ENCODE_STEP1 or LAST_IN_CONTRAST flag), not with that of "
        "its slice: for contrasts that are measured one after another",
    )
    reuse_maps: bool = parameter(True, help="keep a slice's sensitivity maps for all its images; otherwise every image makes its own")

    def __call__(self, items: Stream) -> Iterator[Item]:
        reconstruction = Reconstruction(self, items.context)
        gathering = RepetitionFrames(items.header, self.each_contrast)
        for frame in frames_of(items, reconstruction, gathering):
            yield self._image(frame, reconstruction)
        if gathering.late:
            items.context.log.info("%s: %d images had no LAST_IN_... flag and waited for the next readout", self.name, gathering.late)

    def _image(self, frame: Frame, reconstruction: Reconstruction) -> Image:
        place = frame.series.place
        if self.needs_maps and place not in reconstruction.maps:
            reconstruction.calibrate(frame.readouts)
        image = reconstruction.item(frame, reconstruction.image(frame))
        if not self.reuse_maps:
            reconstruction.maps.pop(place, None)
        return image


def frames_of(items: Stream, reconstruction: Reconstruction, gathering: RepetitionFrames) -> Iterator[Frame]:
    """The frames of the acquisitions, each as soon as it is complete, and those of every bucket."""
    bucket_frames = 0
    for item in items.of(Acquisition, AcquisitionBucket):
        if isinstance(item, AcquisitionBucket):
            for readouts in _images_of(item, reconstruction):
                bucket_frames += 1
                yield Frame(readouts, len(readouts), bucket_frames, triggered=item.triggered)
        elif isinstance(item, Acquisition):
            readout = reconstruction.readout(item)
            if readout is not None:
                yield from gathering.add(readout)
    yield from gathering.finish()


def _images_of(bucket: AcquisitionBucket, reconstruction: Reconstruction) -> list[list[Readout]]:
    """The readouts of a bucket image by image, in the order in which the images begin."""
    for acquisition in bucket.ref:
        # Readouts that also belong to the image come again with the bucket's data.
        if acquisition.is_flag_set(Flag.IS_PARALLEL_CALIBRATION):
            reconstruction.readout(acquisition)
    gathered: dict[tuple[Series, int], list[Readout]] = {}
    for acquisition in bucket.data:
        readout = reconstruction.readout(acquisition)
        if readout is not None:
            gathered.setdefault((readout.series, int(readout.header["idx"]["repetition"])), []).append(readout)
    return list(gathered.values())
