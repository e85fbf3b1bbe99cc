// Numbers to pixels: a 16-bit image through its window, and a map through its colours.
//
// Maps are coloured as in radgaze's reports: opacity rises with the square root of the value, so that low attention is
// tinted and the anatomy below still reads. What is zero or negative is not drawn.

// Every fifth colour of matplotlib's maps; between them linear, within 1.2 of 255 of the original.
const INFERNO =
  "00000402020c0504170a072210092d160b391e0c45260c512f0a5b380962400a67490b6a510e6c59106e61136e69166e71196e781c6d" +
  "801f6c88226a902568982766a02a63a82e5fb0315bb73557bf3952c63d4dcc4248d34743d94d3ddf5337e45a31e9612bed6925f1711f" +
  "f47918f78212f98b0bfa9407fb9d07fca60cfcb014fbba1ffac42af8cd37f6d746f4e156f2ea69f2f27df5f992fcffa4";
const VIRIDIS =
  "44015446085c471063481769481d6f482475472a7a46307e453781433d844142873f48893d4e8a3a538b38598c355e8d33638d31688e" +
  "2e6d8e2c718e2a768e297b8e27808e25848e23898e218e8d20928c1f978b1e9c891fa18821a58524aa8328ae802eb37c35b7793dbc74" +
  "46c06f50c46a5ac86465cb5e70cf577cd25089d54895d840a2da37b0dd2fbddf26cae11fd8e219e5e419f1e51dfde725";

const HEAT_SIDE = 512; // pixels along the longer side of a coloured map
const LEGEND_GREY = 96; // what the legend's colours are shown over

export const COLOURS = { inferno: colours(INFERNO), viridis: colours(VIRIDIS) };

function colours(hex) {
  const anchors = hex.match(/../g).map((pair) => parseInt(pair, 16));
  const table = new Uint8ClampedArray(256 * 3);
  for (let level = 0; level < 256; level += 1) {
    const below = Math.min(Math.floor(level / 5), 50);
    const share = level / 5 - below;
    for (let channel = 0; channel < 3; channel += 1) {
      const [from, to] = [anchors[3 * below + channel], anchors[3 * below + 3 + channel]];
      table[3 * level + channel] = from + share * (to - from);
    }
  }
  return table;
}

function surface(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas;
}

/** An image of a study: its size in source pixels, its preview, and the canvas that shows it through a window. */
export class Picture {
  #shown = null;

  constructor({ name, height, width, preview }) {
    this.name = name;
    this.height = height;
    this.width = width;
    this.preview = preview;
    this.grid = {
      height: preview.height,
      width: preview.width,
      x0: preview.x0 ?? ((preview.scale ?? 1) - 1) / 2,
      y0: preview.y0 ?? ((preview.scale ?? 1) - 1) / 2,
      dx: preview.scale_x ?? preview.scale,
      dy: preview.scale_y ?? preview.scale,
    };
    this.canvas = surface(preview.width, preview.height);
    this.usual = this.#usualWindow();
  }

  /** Brightness from `level - width / 2` (black) to `level + width / 2` (white), or the other way round. */
  draw({ level, width, invert }) {
    const key = `${level}/${width}/${invert}`;
    if (this.#shown === key) return this.canvas;
    const { low, high, values } = this.preview;
    const step = (high - low) / 65535;
    const grey = new Uint8ClampedArray(65536);
    for (let value = 0; value < 65536; value += 1) {
      const share = (low + value * step - level) / width + 0.5;
      grey[value] = 255 * (invert ? 1 - share : share);
    }
    const context = this.canvas.getContext("2d");
    const image = context.createImageData(this.preview.width, this.preview.height);
    const pixels = new Uint32Array(image.data.buffer);
    for (let index = 0; index < values.length; index += 1) {
      const level8 = grey[values[index]];
      pixels[index] = 0xff000000 | (level8 << 16) | (level8 << 8) | level8;
    }
    context.putImageData(image, 0, 0);
    this.#shown = key;
    return this.canvas;
  }

  /** All but the darkest and the brightest half percent of the image; padding around it does not count. */
  #usualWindow() {
    const { height, width, values, low, high } = this.preview;
    const counts = new Uint32Array(65536);
    let total = 0;
    for (let row = 0; row < height; row += 1) {
      const y = this.grid.y0 + row * this.grid.dy;
      if (y < -0.5 || y > this.height - 0.5) continue;
      for (let column = 0; column < width; column += 1) {
        const x = this.grid.x0 + column * this.grid.dx;
        if (x < -0.5 || x > this.width - 0.5) continue;
        counts[values[row * width + column]] += 1;
        total += 1;
      }
    }
    const at = (share) => {
      let seen = 0;
      for (let value = 0; value < 65536; value += 1) {
        seen += counts[value];
        if (seen > share * total) return low + (value / 65535) * (high - low);
      }
      return high;
    };
    const [dark, bright] = [at(0.005), at(0.995)];
    return bright > dark
      ? { level: (dark + bright) / 2, width: bright - dark }
      : { level: (low + high) / 2, width: Math.max(high - low, 1e-6) };
  }
}

/** Attention as multiples of an even spread: its mean over the map becomes 1. */
export function relative(map) {
  let sum = 0;
  for (const value of map.values) sum += Math.max(value, 0);
  const mean = sum / map.values.length;
  return mean > 0 ? { ...map, values: map.values.map((value) => Math.max(value, 0) / mean) } : map;
}

export function highest(map) {
  let high = 0;
  for (const value of map.values) if (value > high) high = value;
  return high;
}

/**
 * A map over exactly an image of `height` x `width` source pixels, bilinear between its cells, in colour.
 *
 * Cell (row i, column j) is centred at (x0 + j·dx, y0 + i·dy); beyond the outer cells their value holds. Values from 0
 * to `high` run through `table`.
 */
export function heat(map, { height, width }, high, table) {
  const shrink = HEAT_SIDE / Math.max(height, width);
  const [rows, columns] = [Math.max(1, Math.round(height * shrink)), Math.max(1, Math.round(width * shrink))];
  const canvas = surface(columns, rows);
  const grid = { height: rows, width: columns, dy: height / rows, dx: width / columns };
  grid.y0 = (grid.dy - 1) / 2;
  grid.x0 = (grid.dx - 1) / 2;
  if (high > 0) {
    const context = canvas.getContext("2d");
    const image = context.createImageData(columns, rows);
    const across = between(columns, grid.x0, grid.dx, map.x0, map.dx, map.width);
    const down = between(rows, grid.y0, grid.dy, map.y0, map.dy, map.height);
    for (let row = 0; row < rows; row += 1) {
      const [top, bottom] = [down.below[row] * map.width, down.above[row] * map.width];
      const sink = down.share[row];
      for (let column = 0; column < columns; column += 1) {
        const [left, right, drift] = [across.below[column], across.above[column], across.share[column]];
        const upper = map.values[top + left] * (1 - drift) + map.values[top + right] * drift;
        const lower = map.values[bottom + left] * (1 - drift) + map.values[bottom + right] * drift;
        tint(image.data, 4 * (row * columns + column), (upper * (1 - sink) + lower * sink) / high, table);
      }
    }
    context.putImageData(image, 0, 0);
  }
  return { canvas, grid };
}

function tint(data, at, value, table) {
  const unit = Math.min(Math.max(value, 0), 1);
  const level = 3 * Math.round(255 * unit);
  data[at] = table[level];
  data[at + 1] = table[level + 1];
  data[at + 2] = table[level + 2];
  data[at + 3] = 255 * Math.sqrt(unit);
}

/** For `count` places the two cells they lie between, and how far towards the second. */
function between(count, start, step, first, apart, cells) {
  const found = { below: new Int32Array(count), above: new Int32Array(count), share: new Float32Array(count) };
  for (let index = 0; index < count; index += 1) {
    const place = Math.min(Math.max((start + step * index - first) / apart, 0), cells - 1);
    const below = Math.min(Math.floor(place), Math.max(cells - 2, 0));
    found.below[index] = below;
    found.above[index] = Math.min(below + 1, cells - 1);
    found.share[index] = place - below;
  }
  return found;
}

/** The colour bar: the colours as they look over a mid-grey pixel at an opacity. */
export function legend(canvas, table, opacity) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  for (let column = 0; column < canvas.width; column += 1) {
    const unit = column / (canvas.width - 1);
    const [level, alpha] = [3 * Math.round(255 * unit), opacity * Math.sqrt(unit)];
    for (let row = 0; row < canvas.height; row += 1) {
      const at = 4 * (row * canvas.width + column);
      for (let channel = 0; channel < 3; channel += 1) {
        image.data[at + channel] = alpha * table[level + channel] + (1 - alpha) * LEGEND_GREY;
      }
      image.data[at + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
}
