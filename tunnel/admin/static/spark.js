// The small graph in a proxy's row: bytes per second over the last looks, scaled to itself.

let colour = "";
export const forgetColours = () => { colour = ""; };

export function drawSpark(canvas, history) {
  if (!history) {
    if (canvas.isDrawn) canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
    canvas.isDrawn = false;
    return;
  }
  const { clientWidth: width, clientHeight: height } = canvas;
  if (!width || !height) return;
  const scale = devicePixelRatio || 1;
  const [w, tall] = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== w || canvas.height !== tall) [canvas.width, canvas.height] = [w, tall];
  colour ||= getComputedStyle(document.documentElement).getPropertyValue("--out").trim();
  const context = canvas.getContext("2d");
  const highest = Math.max(...history);
  context.clearRect(0, 0, w, tall);
  context.beginPath();
  history.forEach((value, index) => {
    const x = (index / (history.length - 1)) * w;
    const y = tall - scale - (highest ? (value / highest) * (tall - 2 * scale) : 0);
    context.lineTo(x, y);
  });
  context.strokeStyle = colour;
  context.lineWidth = 1.5 * scale;
  context.lineJoin = "round";
  context.stroke();
  context.lineTo(w, tall);
  context.lineTo(0, tall);
  context.globalAlpha = 0.14;
  context.fillStyle = colour;
  context.fill();
  context.globalAlpha = 1;
  canvas.isDrawn = true;
}
