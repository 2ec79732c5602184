// From a file to pixels. Resizing, cropping and normalising are in the network's graph, so there is none here.

const MOST_BYTES = 64e6;
const MOST_PIXELS = 48e6;
const THINNEST = 64;
const TILE = 2048; // a canvas of a phone cannot hold a large picture whole

/** A picture that is not taken; its message is a sentence for the visitor. */
export class Refused extends Error {}

const millions = (number) => `${(number / 1e6).toFixed(0)} million`;

/** Read the size from the header, before anything is decoded. */
async function sizeOf(blob) {
  const address = URL.createObjectURL(blob);
  const image = new Image();
  try {
    await new Promise((resolve, reject) => {
      image.onload = resolve;
      image.onerror = () => reject(new Refused("It is damaged, or no picture of a kind that this browser reads."));
      image.src = address;
    });
    return [image.naturalWidth, image.naturalHeight];
  } finally {
    URL.revokeObjectURL(address);
  }
}

/** Decode a picture, upright, with the numbers that stand in the file. Raises Refused. */
export async function decoded(blob) {
  if (blob.size > MOST_BYTES) {
    throw new Refused(`It has ${millions(blob.size)} bytes, and this page takes at most ${millions(MOST_BYTES)}.`);
  }
  if (blob.size === 0) throw new Refused("It is empty.");
  const [width, height] = await sizeOf(blob);
  if (width * height > MOST_PIXELS) {
    throw new Refused(
      `It has ${width} x ${height} pixels, and this page takes at most ${millions(MOST_PIXELS)}. Make it smaller.`,
    );
  }
  if (Math.max(width, height) > THINNEST * Math.min(width, height)) {
    throw new Refused(`It has ${width} x ${height} pixels, which is too thin to see something in it.`);
  }
  try {
    return await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new Refused("It is damaged, or no picture of a kind that this browser reads.");
  }
}

/** Return the pixels as uint8 (height, width, channels); grey is Pillow's mode "L". */
export function pixelsOf(bitmap, channels) {
  const { width, height } = bitmap;
  const pixels = new Uint8Array(width * height * channels);
  const tile = new OffscreenCanvas(Math.min(TILE, width), Math.min(TILE, height));
  const context = tile.getContext("2d", { willReadFrequently: true });
  for (let top = 0; top < height; top += TILE) {
    for (let left = 0; left < width; left += TILE) {
      const [wide, high] = [Math.min(TILE, width - left), Math.min(TILE, height - top)];
      context.clearRect(0, 0, wide, high);
      context.drawImage(bitmap, -left, -top);
      const { data } = context.getImageData(0, 0, wide, high);
      for (let y = 0, from = 0; y < high; y++) {
        let to = ((top + y) * width + left) * channels;
        for (let x = 0; x < wide; x++, from += 4) {
          const [red, green, blue] = [data[from], data[from + 1], data[from + 2]];
          if (channels === 1) {
            pixels[to++] = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16;
          } else {
            pixels[to++] = red;
            pixels[to++] = green;
            pixels[to++] = blue;
          }
        }
      }
    }
  }
  return pixels;
}
