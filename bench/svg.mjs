// Pictures as SVG text: echarts draws them, without a browser.
import * as echarts from 'echarts';

export const kFont = { fontFamily: 'sans-serif', fontSize: 12 };

/**
 * Draws a chart.
 * @param option echarts' option; white ground, sans-serif text and no animation unless it says otherwise
 * @returns an SVG document
 */
export function svgOf(option, { width, height }) {
  const chart = echarts.init(null, null, { renderer: 'svg', ssr: true, width, height });
  chart.setOption({ animation: false, backgroundColor: '#ffffff', textStyle: kFont, ...option });
  const svg = chart.renderToSVGString();
  chart.dispose();
  return `${withoutCounters(svg)}\n`;
}

/** The picture alone: hover styles and numbers that count what this process drew before would change it each time. */
function withoutCounters(svg) {
  return svg
    .replace(/<style[\s\S]*?<\/style>/g, '')
    .replace(/ class="zr[^"]*"/g, '')
    .replace(/\bzr\d+-/g, 'zr-');
}
