// Values under the pointer, or by arrow keys. The report is complete without it.
for (const plot of document.querySelectorAll(".plot")) {
  const { x, unit, curves } = JSON.parse(plot.dataset.chart);
  const [low, high, begin, end] = x;
  const svg = plot.querySelector("svg");
  const cursor = plot.querySelector(".cursor");
  const readout = plot.parentElement.querySelector("output");
  const steps = [...new Set(curves.flatMap((c) => c.points.map((p) => p[0])))].sort((a, b) => a - b);
  let at = steps.length - 1;

  const nearest = (points, step) =>
    points.reduce((a, b) => (Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a));

  const show = (step) => {
    const place = begin + ((step - low) / (high - low)) * (end - begin);
    cursor.setAttribute("x1", place);
    cursor.setAttribute("x2", place);
    cursor.setAttribute("visibility", "visible");
    const values = curves.map((c) => `${c.name} ${nearest(c.points, step)[1]}`);
    readout.textContent = `${unit} ${+step.toPrecision(4)}: ${values.join(", ")}`;
  };
  const hide = () => {
    cursor.setAttribute("visibility", "hidden");
    readout.textContent = "";
  };
  plot.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const pixel = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const wanted = low + ((pixel - begin) / (end - begin)) * (high - low);
    at = steps.reduce((a, s, i) => (Math.abs(s - wanted) < Math.abs(steps[a] - wanted) ? i : a), 0);
    show(steps[at]);
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move) return;
    event.preventDefault();
    at = Math.min(steps.length - 1, Math.max(0, at + move * (event.shiftKey ? 10 : 1)));
    show(steps[at]);
  });
}
