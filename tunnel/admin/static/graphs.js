// The graphs, drawn by uPlot: a line over the last minutes, in the page's own colours.

const HEIGHT = 96;
const SMALL_HEIGHT = 44; // and without axes, where there is little room
const LEAST_SECONDS = 60; // of time shown, also before so much has passed

const { uPlot } = window; // a classic script; see vendor/

const colourOf = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export class Graph {
  // `say` makes the label of the value axis; `lines` are names of colours, such as ["--in"].
  constructor(container, { lines, say, highestAtLeast = 1 }) {
    Object.assign(this, { _container: container, _lines: lines, _say: say, _least: highestAtLeast });
    this._data = [[], ...lines.map(() => [])];
    this._small = matchMedia("(max-width: 899px)");
    this._small.addEventListener("change", () => this.rebuild());
    this._build();
    new ResizeObserver(() => this._plot.setSize(this._size)).observe(container);
  }

  get _size() {
    return { width: Math.max(100, this._container.clientWidth), height: this._small.matches ? SMALL_HEIGHT : HEIGHT };
  }

  // Seconds since the epoch, then the values of each line.
  show(at, ...values) {
    this._data = [at, ...values];
    this._plot.setData(this._data);
  }

  // After another choice of colours.
  rebuild() {
    this._plot.destroy();
    this._build();
  }

  _build() {
    const muted = colourOf("--muted");
    const show = !this._small.matches;
    const axis = { show, stroke: muted, font: "11px system-ui, sans-serif", ticks: { show: false }, gap: 4 };
    const series = this._lines.map((name) => {
      const stroke = colourOf(name);
      return { stroke, width: 1.5, fill: `${stroke}22`, points: { show: false } };
    });
    this._plot = new uPlot({
      ...this._size,
      padding: [6, 2, 0, 0],
      legend: { show: false },
      cursor: { show: false },
      select: { show: false },
      scales: {
        x: { time: true, range: (_plot, low, high) => [Math.min(low, high - LEAST_SECONDS), high] },
        y: { range: (_plot, _low, high) => [0, Math.max(this._least, high ?? 0) * 1.1] },
      },
      series: [{}, ...series],
      axes: [
        { ...axis, size: 20, space: 90, grid: { show: false }, values: sayTimes },
        { ...axis, size: 58, space: 26, grid: { stroke: colourOf("--line"), width: 1 }, values: (_plot, splits) => splits.map(this._say) },
      ],
    }, this._data, this._container);
  }
}

// Not at the edges, where a label would be cut off or meet the other axis.
function sayTimes({ scales: { x } }, splits) {
  const edge = 0.11 * (x.max - x.min);
  return splits.map((at) => (at - x.min < edge || x.max - at < edge ? "" : timeOfDay(at)));
}

const timeOfDay = (at) => new Date(at * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
