// The image on the screen: zoom, pan and window, shared by all stages that show the same image.

const MOST_ZOOM = 40;
const FINE = 1e-4; // of the range of brightness: the narrowest window

/** How the image is looked at. Everything that draws watches it. */
export class View {
  zoom = 1; // 1 fits the image to the stage
  x = 0; // source pixel at the middle of the stage
  y = 0;
  level = 0.5; // source brightness
  width = 1;
  invert = false;
  opacity = 0.85;
  grabbing = false; // the space bar is held: dragging pans
  picture = null;
  #watchers = [];

  watch(watcher) {
    this.#watchers.push(watcher);
  }

  set(changes) {
    Object.assign(this, changes);
    if (this.picture) {
      const { low, high } = this.picture.preview;
      this.zoom = clamp(this.zoom, 1, MOST_ZOOM);
      this.x = clamp(this.x, -0.5, this.picture.width - 0.5);
      this.y = clamp(this.y, -0.5, this.picture.height - 0.5);
      this.width = clamp(this.width, (high - low) * FINE, high - low);
      this.level = clamp(this.level, low, high);
    }
    for (const watcher of this.#watchers) watcher(this);
  }

  show(picture) {
    this.picture = picture;
    this.fit();
    this.resetWindow();
  }

  fit() {
    if (this.picture) this.set({ zoom: 1, x: (this.picture.width - 1) / 2, y: (this.picture.height - 1) / 2 });
  }

  resetWindow() {
    if (this.picture) this.set({ ...this.picture.usual, invert: false });
  }
}

/** One canvas that shows the view's picture, a coloured map over it, and marks on top. */
export class Stage {
  heat = null; // {canvas, grid} of raster.heat
  marks = null; // (context, stage) => void
  #canvas;
  #view;
  #waiting = false;
  #pointers = new Map();
  #drag = null;
  #pointer = null;

  constructor(canvas, view) {
    this.#canvas = canvas;
    this.#view = view;
    view.watch(() => this.refresh());
    new ResizeObserver(() => this.refresh()).observe(canvas);
    canvas.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (event) => this.#up(event));
    canvas.addEventListener("pointerleave", () => (this.#pointer = null));
    canvas.addEventListener("dblclick", () => view.resetWindow());
    canvas.addEventListener("auxclick", (event) => event.preventDefault());
  }

  /** Draws at the next frame. */
  refresh() {
    if (this.#waiting) return;
    this.#waiting = true;
    requestAnimationFrame(() => {
      this.#waiting = false;
      this.#draw();
    });
  }

  /** Screen pixels per source pixel. */
  get scale() {
    const { picture, zoom } = this.#view;
    const { clientWidth, clientHeight } = this.#canvas;
    return picture ? zoom * Math.min(clientWidth / picture.width, clientHeight / picture.height) : 1;
  }

  toScreen(x, y) {
    const { clientWidth, clientHeight } = this.#canvas;
    const scale = this.scale;
    return [(x - this.#view.x) * scale + clientWidth / 2, (y - this.#view.y) * scale + clientHeight / 2];
  }

  toSource(left, top) {
    const { clientWidth, clientHeight } = this.#canvas;
    const scale = this.scale;
    return [(left - clientWidth / 2) / scale + this.#view.x, (top - clientHeight / 2) / scale + this.#view.y];
  }

  get hovered() {
    return this.#pointer !== null;
  }

  /** Zooms by `factor` about a point of the canvas; by default about the pointer, or the middle. */
  zoomBy(factor, at = this.#pointer) {
    const { clientWidth, clientHeight } = this.#canvas;
    const [left, top] = at ?? [clientWidth / 2, clientHeight / 2];
    const [x, y] = this.toSource(left, top);
    const zoom = clamp(this.#view.zoom * factor, 1, MOST_ZOOM);
    const scale = (this.scale / this.#view.zoom) * zoom;
    this.#view.set({ zoom, x: x - (left - clientWidth / 2) / scale, y: y - (top - clientHeight / 2) / scale });
  }

  /** Moves the image by so many screen pixels. */
  panBy(right, down) {
    this.#view.set({ x: this.#view.x - right / this.scale, y: this.#view.y - down / this.scale });
  }

  #wheel(event) {
    event.preventDefault();
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1;
    const speed = event.ctrlKey ? 0.01 : 0.0015; // a pinch on a touch pad comes as a wheel with ctrl
    this.zoomBy(Math.exp(clamp(-event.deltaY * lines * speed, -1, 1)), this.#at(event));
  }

  #down(event) {
    if (event.button > 1) return;
    if (event.button === 1) event.preventDefault(); // no automatic scrolling
    this.#canvas.setPointerCapture(event.pointerId);
    this.#pointers.set(event.pointerId, this.#at(event));
    const pans = event.button === 1 || this.#view.grabbing;
    this.#begin(this.#pointers.size > 1 ? "pinch" : pans ? "pan" : "window");
  }

  #move(event) {
    this.#pointer = this.#at(event);
    if (!this.#pointers.has(event.pointerId) || !this.#drag) return;
    this.#pointers.set(event.pointerId, this.#pointer);
    const { kind, from, level, width, x, y, spread } = this.#drag;
    const [left, top] = middle(this.#pointers);
    const [right, down] = [left - from[0], top - from[1]];
    const view = this.#view;
    if (kind === "pan") {
      view.set({ x: x - right / this.scale, y: y - down / this.scale });
    } else if (kind === "window" && view.picture) {
      const { low, high } = view.picture.preview;
      const size = Math.min(this.#canvas.clientWidth, this.#canvas.clientHeight);
      const range = (high - low) / size;
      view.set({ width: width + right * range, level: level + down * range });
    } else if (kind === "pinch") {
      this.panBy(right, down);
      this.zoomBy(distance(this.#pointers) / spread, [left, top]);
      this.#begin("pinch");
    }
  }

  #up(event) {
    this.#pointers.delete(event.pointerId);
    this.#drag = null;
    if (event.pointerType === "touch") this.#pointer = null;
    // What is left of a pinch moves the image on; it must not change the window.
    if (this.#pointers.size > 0) this.#begin(this.#pointers.size > 1 ? "pinch" : "pan");
    this.#canvas.classList.remove("windowing", "panning");
  }

  #begin(kind) {
    const { level, width, x, y } = this.#view;
    this.#drag = { kind, from: middle(this.#pointers), level, width, x, y, spread: distance(this.#pointers) };
    this.#canvas.classList.toggle("panning", kind !== "window");
    this.#canvas.classList.toggle("windowing", kind === "window");
  }

  #at(event) {
    const box = this.#canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  #draw() {
    const canvas = this.#canvas;
    const density = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(canvas.clientWidth * density), Math.round(canvas.clientHeight * density)];
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
    }
    const context = canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, width, height);
    const { picture, opacity } = this.#view;
    if (!picture || !width || !height) return;
    context.setTransform(density, 0, 0, density, 0, 0);
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    context.save();
    context.beginPath();
    context.rect(...this.toScreen(-0.5, -0.5), picture.width * this.scale, picture.height * this.scale);
    context.clip();
    this.#place(context, picture.draw(this.#view), picture.grid);
    if (this.heat) {
      context.globalAlpha = opacity;
      this.#place(context, this.heat.canvas, this.heat.grid);
      context.globalAlpha = 1;
    }
    context.restore();
    this.marks?.(context, this);
  }

  /** A canvas whose pixel (row i, column j) is centred at (x0 + j·dx, y0 + i·dy) in the source. */
  #place(context, canvas, { x0, y0, dx, dy, width, height }) {
    const scale = this.scale;
    context.drawImage(canvas, ...this.toScreen(x0 - dx / 2, y0 - dy / 2), width * dx * scale, height * dy * scale);
  }
}

export function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

function middle(pointers) {
  const places = [...pointers.values()];
  return [0, 1].map((axis) => places.reduce((sum, place) => sum + place[axis], 0) / places.length);
}

function distance(pointers) {
  const [first, second] = [...pointers.values()];
  return second ? Math.max(Math.hypot(first[0] - second[0], first[1] - second[1]), 1) : 1;
}
